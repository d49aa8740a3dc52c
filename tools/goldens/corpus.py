"""corpus.py - the small text that the tokenizers of test checkpoints are trained on.

    lines(n, seed)   n lines: sentences of many scripts, words shuffled, numbers, code, emoji
    SENTENCES        the sentences themselves, one language each

The text was written for this purpose; what it says does not matter, what bytes and scripts occur does.
"""
import random

SENTENCES = [
    # Latin
    "The red kettle sings on the stove while it's raining, and we'll wait until she's home.",
    "What did the speaker say after the bell rang? I don't know; they'd already left.",
    "Which letter comes first, the one on the screen or the one you've heard?",
    "Count the yellow squares, then name the colour of the smallest circle.",
    "Der Zug fährt um 7 Uhr über die große Brücke, und die Straße bleibt naß.",
    "Où est la clé ? L'été, nous mangeons des crêpes près de la forêt d'à côté.",
    "El niño soñó que el pingüino cantaba: ¡qué canción más extraña!",
    "A manhã começou com pão, maçã e um coração tranquilo.",
    "Perché il caffè è così caldo? Perché l'hai appena versato.",
    "Het meisje fietst naar de zee en zoekt één schelp.",
    "Sjøen er blå, og båten går før øya våkner. Även ån är stilla i kväll.",
    "Żółta łódź płynie wśród mgły, a gęś śpi pod dębem.",
    "Příliš žluťoučký kůň našel čisté řeky a šťastné děti.",
    "Az őrült írógép gyűrűt vásárolt, és útközben elszökött.",
    "Çiçekler ağaçların gölgesinde büyür; ığdır'da güneş doğuyor.",
    "Trời hôm nay đẹp quá, chúng ta đi dạo bên bờ hồ nhé.",
    "Þórður sá ljósið á fjallinu þegar nóttin varð köld.",
    "Kedi ile köpek aynı odada uyur, kimse ses çıkarmaz.",
    # Greek, Cyrillic, Armenian, Georgian
    "Η θάλασσα είναι ήρεμη και το φεγγάρι φωτίζει τα πλοία.",
    "Старый мост над рекой помнит каждый дождь и каждый шаг.",
    "Де живе білий лелека? Над хатою, біля ґанку, під їхнім дахом.",
    "Тази сутрин слънцето изгря над планината.",
    "Արևը ծագեց լեռների վրա, և գյուղը արթնացավ։",
    "მზე ამოვიდა მთის უკან და ჩიტებმა სიმღერა დაიწყეს.",
    # Hebrew, Arabic, Persian, Urdu
    "הילד קרא ספר ליד החלון בזמן שירד גשם.",
    "القطة تنام فوق السجادة، والباب مفتوح للريح.",
    "کتاب روی میز است و پنجره رو به باغ باز می‌شود.",
    "آج موسم بہت اچھا ہے، چلو باغ میں چلتے ہیں۔",
    # Indic
    "आज सुबह बारिश हुई और बच्चे नदी के किनारे खेलते रहे।",
    "নদীর ধারে একটি ছোট নৌকা বাঁধা আছে।",
    "ਬਾਗ ਵਿੱਚ ਨਿੱਕੇ ਪੰਛੀ ਗਾ ਰਹੇ ਹਨ।",
    "ઘરની સામે એક મોટું ઝાડ છે.",
    "மழை பெய்தது, குழந்தைகள் மகிழ்ச்சியாக விளையாடினர்.",
    "చెట్టు కింద పిల్లి నిద్రపోతోంది.",
    "ಮನೆಯ ಮುಂದೆ ಹೂವಿನ ತೋಟ ಇದೆ.",
    "മഴ പെയ്തു തോർന്നപ്പോൾ പക്ഷികൾ പാടി.",
    "ගඟ අසල කුඩා නිවසක් තිබේ.",
    # South-east Asia, Tibet, Ethiopia
    "แมวนอนอยู่บนหลังคาและฟังเสียงฝนตก",
    "ແມວນອນຢູ່ເທິງຫຼັງຄາ",
    "ဆူးရွက်ကြားတွင် ငှက်ကလေး သီချင်းဆိုနေသည်။",
    "ឆ្មាដេកនៅលើដំបូលផ្ទះ។",
    "ཉི་མ་ཤར་སོང་། བྱིའུ་གླུ་ལེན་གྱི་འདུག",
    "ድመቷ በጣሪያው ላይ ተኝታለች።",
    # Han, kana, Hangul
    "今天早上下雨了,孩子们在河边看船。",
    "窗外的雨聲越來越大,貓還睡在書桌上。",
    "屏幕上出现了几个字母?第一个是什么颜色?",
    "駅のホームで古い時計がゆっくり鳴っている。",
    "カメラの前で、彼女は小さなピアノを弾きました。",
    "비가 그친 뒤에 아이들이 강가에서 노래를 불렀다.",
    "화면에 보이는 첫 번째 글자는 무엇입니까?",
    # code, numbers, signs, emoji
    "for (int i = 0; i < n; i++) { sum += x[i] * w[i]; }\n\tif (!ok) return -1;",
    "def mean(values):\n    return sum(values) / max(1, len(values))  # never zero\n",
    "SELECT name, COUNT(*) FROM clips WHERE seconds >= 30 GROUP BY name;",
    "{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"What is this?\"}]}",
    "3.14159 and 2,718 are not 42; see pages 7-19 (2023/11/05, 08:15).",
    "x² + y² ≤ r² → √(a·b) ≈ ½ ∑ αβγ ± 10⁻³ €£¥ §7 «quote» “curly” ‘single’ …",
    "🙂 👍🏽 👩‍👩‍👧‍👦 🇫🇷🇯🇵 ❤️ 🏴‍☠️ ✅ 🚀🚀 ⚠️",
    "https://example.org/media/clip-01.mp4?start=12&end=30#frame",
]


def lines(n, seed=1):
    """n lines: every sentence once, then lines of shuffled words of one or two sentences."""
    rng = random.Random(seed)
    out = list(SENTENCES)
    while len(out) < n:
        a, b = rng.sample(SENTENCES, 2)
        words = a.split(" ") + (b.split(" ") if rng.random() < 0.5 else [])
        rng.shuffle(words)
        line = " ".join(words[:rng.randint(2, 12)])
        if rng.random() < 0.3:
            line = line[:1].upper() + line[1:] + rng.choice([".", "?", "!", "...", "。", " 12", ":\n", "\n\n"])
        out.append(line)
    return out[:n]
