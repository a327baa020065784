//! Which Firefox OS drawing shows which concept, where the names alone do not say so.
//!
//! That package has neither code points nor aliases, and many of its names are its own
//! (`spurtingwhale`) or misleading (`cat` is the face; the animal is `catside`).

/// Pairs `concept=drawing` between white space; `-` says that no drawing of the package shows the
/// concept.
pub(crate) const DRAWINGS: &str = "\
    a-button-blood-type=negativesquaredlatincaptiala ab-button-blood-type=negativesquaredab anger-symbol=anger \
    angry-face-with-horns=imp angry-face=angry anguished-face=anguish antenna-bars=antennawithbars anxious-face-with-sweat=coldsweat \
    astonished-face=- atm-sign=automatedtellermachine b-button-blood-type=negativesquaredlatincaptialb \
    back-arrow=backwithleftwardsarrow backhand-index-pointing-down=down backhand-index-pointing-left=left \
    backhand-index-pointing-right=right backhand-index-pointing-up=up backpack=schoolsatchel basketball=basketballandhoop \
    beach-with-umbrella=beachumbrella beaming-face-with-smiling-eyes=grineyes bell-with-slash=bellcancellation bird=bird \
    black-circle=mediumblackcircle blue-circle=largebluecircle blue-heart=- bookmark-tabs=bookmarktab bright-button=highbrightness \
    building-construction=construction bullet-train=highspeedtrainbulletnose camel=dromedarycamel castle=europeancastle cat-face=cat \
    cat-with-tears-of-joy=- cat-with-wry-smile=- cat=catside chart-decreasing=chartdownwardstrend \
    chart-increasing-with-yen=chartupwardstrendyen chart-increasing=chartupwardstrend chestnut=acorn cigarette=smokingsymbol \
    circled-m=circledlatincapitalletterm cl-button=squaredcl clamp=compression clapping-hands=clap \
    clockwise-vertical-arrows=clockwisedownupcircledarrows closed-mailbox-with-lowered-flag=closedmailboxlowered \
    closed-mailbox-with-raised-flag=closedmailboxraised closed-umbrella=umbrella cloud-with-lightning-and-rain=stormcloud \
    cloud-with-rain=raincloud cloud-with-snow=snowcloud club-suit=blackclubsuit computer-disk=minidisc computer-mouse=threebuttonmouse \
    confetti-ball=confetti confounded-face=confounded confused-face=confused construction-worker=construct \
    construction=constructionsign control-knobs=controlknob cool-button=squaredcool \
    counterclockwise-arrows-button=anticlockwiseupwardsanddownwardsarrows couple-with-heart=couple crayon=lowerleftcrayon \
    cross-mark-button=negativesquaredcrossmark crying-cat=- crying-face=crying curry-rice=curryandrice dagger=daggerknife \
    dashing-away=dash detective=sleuthspy diamond-suit=blackdiamondsuit diamond-with-a-dot=diamondshapewithdotinside \
    dim-button=lowbrightness disappointed-face=disappointed dog-face=dog dog=dogside dollar-banknote=banknotedollar \
    dotted-six-pointed-star=sixpointedstarwithdot double-exclamation-mark=doubleexclaimationmark dove=doveofpeace down-arrow=- \
    down-left-arrow=- down-right-arrow=southeastarrow downcast-face-with-sweat=sweat downwards-button=downpointingsmallredtrisngle \
    dragon-face=dragonhead dragon=dragonside ear-of-corn=earofmaize eggplant=aubergine eight-pointed-star=eightpointedblackstar \
    eight-spoked-asterisk=eightspokedasterix end-arrow=endwithleftwardsarrow enraged-face=pouting \
    envelope-with-arrow=envelopedownarrowabove euro-banknote=banknoteeuro evergreen-tree=evergreen ewe=sheep \
    exclamation-question-mark=exclaimationquestionmark expressionless-face=expressionless face-blowing-a-kiss=kiss \
    face-savoring-food=smiletongue face-screaming-in-fear=screamfear face-with-medical-mask=medicalmask face-with-open-mouth=openmouth \
    face-with-steam-from-nose=triumph face-with-tears-of-joy=grintears face-with-tongue=tongueout face-without-mouth=nomouth \
    fallen-leaf=fallingleaf fast-down-button=blackdownpointingdoublearrow fast-forward-button=blackrightpointingdoublearrow \
    fast-reverse-button=blackleftpointingdoublearrow fast-up-button=blackuppointingdoublearrow fearful-face=fearful \
    fish-cake-with-swirl=fishcakeswirl fishing-pole=fishingpoleandfish flashlight=electrictorch flexed-biceps=flexbicep \
    floppy-disk=floppydisk2 flushed-face=flushed folded-hands=pray fork-and-knife-with-plate=forkknife \
    fountain-pen=lowerleftfountainpen framed-picture=framewithpicture free-button=squaredfree front-facing-baby-chick=frontfacingchick \
    frowning-face-with-open-mouth=frownmouth frowning-face=- game-die=- gem-stone=gem globe-showing-americas=americasglobe \
    globe-showing-asia-australia=asiaaustraliaglobe globe-showing-europe-africa=europeafricaglobe globe-with-meridians=meridianglobe \
    glowing-star=star goblin=japaneseangrymask green-heart=heartgreen grimacing-face=grimacing grinning-cat-with-smiling-eyes=- \
    grinning-cat=- grinning-face-with-big-eyes=grinwide grinning-face-with-smiling-eyes=grinwideeyes \
    grinning-face-with-sweat=grinsweat grinning-face=grin grinning-squinting-face=grinsquint guard=guardsman hamster=hampster \
    hand-with-fingers-splayed=raisedhandsfingerssplayed hear-no-evil-monkey=monkeyhear heart-suit=blackheartsuit \
    heart-with-arrow=heartarrow heart-with-ribbon=heartribbon high-heeled-shoe=heels high-voltage=bolt hot-pepper=chilipepper \
    hourglass-done=hourglass hourglass-not-done=hourglassflowingsand house=housebuilding houses=housebuildings \
    hundred-points=hundredpointssymbol hushed-face=hushed id-button=squaredid index-pointing-up=index information=informationsource \
    input-latin-letters=inputsymbolforlatinletters input-latin-lowercase=inputsymbolforlatinsmallletters \
    input-latin-uppercase=inputsymbolforlatincapitalletters input-numbers=inputsymbolfornumbers input-symbols=inputsymbolforsymbols \
    japanese-acceptable-button=circledideographaccept japanese-bargain-button=circledideographadvantage \
    japanese-congratulations-button=circledideographcongratulation japanese-here-button=squaredkatakanakoko \
    japanese-secret-button=circledideographsecret japanese-service-charge-button=squaredkatakanasa joker=playingcardblackjoker \
    keyboard=wiredkeyboard kiss=couplekiss kissing-cat=- kissing-face-with-closed-eyes=kissclosedeyes \
    kissing-face-with-smiling-eyes=kisseyes kissing-face=kissing kitchen-knife=hocho laptop=personalcomputer \
    latin-cross=heavylatincross leaf-fluttering-in-wind=leaffluttering left-arrow-curving-right=rightwardsarrowwithhook \
    left-arrow=leftwardsblackarrow leopard=leopardside link=linksymbol litter-in-bin-sign=putlitterinitsplacesymbol \
    locked-with-key=lockandkey locked-with-pen=lockwithinkpen locked=lock locomotive=steamlocomotive loudly-crying-face=loudlycrying \
    magnifying-glass-tilted-left=leftmagnifyingglass magnifying-glass-tilted-right=rightmagnifyingglass mahjong-red-dragon=mahjong \
    mans-shoe=mensshoe mantelpiece-clock=manltepiececlock map-of-japan=silhouetteohjapan men-holding-hands=guyguy mens-room=menssymbol \
    middle-finger=reversehandmiddlefinger moai=moyai mobile-phone-with-arrow=phonerightarrowleft mobile-phone=cellphone \
    mouse-face=mouse mouse=mouseside multiply=heavymultiplicationsymbol musical-notes=multiplemusicalnotes \
    muted-speaker=speakercancellation necktie=tie neutral-face=neutral new-button=squarednew new-moon-face=newmoonwithface \
    ng-button=squaredng no-littering=donotlittersymbol no-one-under-eighteen=nooneunder18symbol no-smoking=nosmokingsymbol \
    non-potable-water=nonpotablewatersymbol notebook-with-decorative-cover=notebookdecorativecover \
    o-button-blood-type=negativesquaredlatincaptialo ok-button=squaredok ok-hand=aok old-man=gpa old-woman=gma om=omsymbol \
    on-arrow=onarrowleftright oncoming-fist=fistedhand open-hands=high5 open-mailbox-with-lowered-flag=openmailboxlowered \
    open-mailbox-with-raised-flag=openmailboxraised optical-disk=opticaldisc outbox-tray=outbox \
    p-button=negativesquaredlatincapitalletterp paintbrush=lowerleftpaintbrush pen=lowerleftpen pencil=lowerleftpencil \
    pensive-face=pensive people-with-bunny-ears=bunny-ears persevering-face=perservere person-biking=bicyclist \
    person-blond-hair=blonde person-bowing=bowing person-frowning=frown person-gesturing-no=nogesture person-gesturing-ok=okgesture \
    person-getting-haircut=haircut person-getting-massage=headmassage person-golfing=golfer \
    person-in-suit-levitating=maninbusinesssuitlevitating person-lifting-weights=weightlifter person-pouting=pout \
    person-raising-hand=handup person-rowing-boat=rowboat person-running=running person-surfing=surfer person-swimming=swimming \
    person-taking-bath=bath person-tipping-hand=waitress person-walking=walking person-wearing-turban=turban \
    person-with-skullcap=guapimao person-with-veil=bride pig-face=pig pig-nose=pigsnout pig=pigside pile-of-poo=poo pizza=sliceofpizza \
    play-button=blackrightpointingarrow police-car-light=policecarsrevolvinglight police-officer=cop pool-8-ball=billiards \
    post-office=europeanpostoffice potable-water=potablewatersystem pound-banknote=banknotepound pouting-cat=- prohibited=noentrysign \
    purple-heart=heartpurple rabbit-face=bunny rabbit=bunnyside racing-car=racecar raised-hand=hand raising-hands=hands \
    recycling-symbol=blackuniversalrecyclingsymbol red-circle=largeredcircle red-exclamation-mark=heavyexclaimationmarksymbol \
    red-paper-lantern=izakayalantern red-question-mark=blackquestionmark red-triangle-pointed-down=downpointingredtriangle \
    red-triangle-pointed-up=uppointingredtriangle relieved-face=relieved reminder-ribbon=reminder \
    repeat-button=clockwiserightwardsleftwardscirclearrows repeat-single-button=clockwiserightwardsleftwardscirclearrowsone \
    reverse-button=blackleftpointingarrow ribbon=bow right-arrow-curving-down=arrowrightwardsdownwards \
    right-arrow-curving-left=leftwardsarrowwithhook right-arrow-curving-up=arrowrightwardsupwards right-arrow=blackrightwardsarrow \
    running-shoe=mensrunner sad-but-relieved-face=dissapointedrelief sagittarius=saggitarius sake=sakebottleandcup \
    santa-claus=fatherchristmas scissors=blackscissors see-no-evil-monkey=monkeysee sheaf-of-rice=earofrice \
    shuffle-tracks-button=twistedrightwardsarrows skis=skiandskiboot skull-and-crossbones=blackskullcrossbones sleeping-face=sleeping \
    sleepy-face=sleepy slightly-frowning-face=smallfrown slightly-smiling-face=smallsmile smiling-cat-with-heart-eyes=- \
    smiling-face-with-halo=halo smiling-face-with-heart-eyes=hearteyes smiling-face-with-horns=devilhorns \
    smiling-face-with-smiling-eyes=smileeyes smiling-face-with-sunglasses=sunglasses smiling-face=whitesmilingface smirking-face=smirk \
    snow-capped-mountain=snowmountains snowman=- soon-arrow=soonwithrightarrow sos-button=squaredsos spade-suit=blackspadesuit \
    sparkler=fireworksparkler speak-no-evil-monkey=monkeyspeak speaker-high-volume=speaker3soundwaves speaker-low-volume=speaker \
    speaker-medium-volume=speakeronesoundwave speaking-head=speakingheadinsilhouette speech-balloon=speechbubble \
    spiral-calendar=spiralcalendarpad sport-utility-vehicle=recreationalvehicle spouting-whale=spurtingwhale \
    squinting-face-with-tongue=tongueoutwink2 star=whitemediumstar studio-microphone=studiomic \
    sun-behind-large-cloud=whitesunbehindcloud sun-behind-rain-cloud=sunraincloud sun-behind-small-cloud=whitesunsmallcloud \
    sun=sunrays sunglasses=darksunglasses sunset=sunsetoverbuildings sweat-droplets=sweatsplash t-shirt=mansshirt \
    telephone-receiver=telephonereceiver2 telephone=blacktelephone tennis=tennisball thought-balloon=thoughtbaloon tiger-face=tiger \
    tiger=tigerside tired-face=tired tokyo-tower=toykotower top-arrow=topwithupwardsarrow tram-car=- two-hearts=2hearts \
    two-hump-camel=bactriancamel umbrella=- unamused-face=unamused unlocked=openlock up-arrow=- up-button=squaredup \
    up-left-arrow=northwestarrow up-right-arrow=northeastarrow upwards-button=uppointingsmallredtrisngle \
    video-camera=handheldvideocamera videocassette=videocasette vs-button=squaredvs waning-gibbous-moon=waningbibbousmoon \
    warning=warningsign water-wave=wave waving-hand=waving weary-cat=- weary-face=weary white-circle=mediumwhitecircle \
    white-exclamation-mark=whiteexclaimationmark window=- winking-face-with-tongue=tongueoutwink winking-face=winking \
    woman-and-man-holding-hands=girlguy woman-dancing=dancer womans-boot=boot womans-clothes=womansshirt womans-sandal=sandals \
    women-holding-hands=girlgirl womens-room=womenssymbol worried-face=worried wrapped-gift=present writing-hand=leftwritinghand \
    yellow-heart=heartyellow yen-banknote=banknoteyen";
